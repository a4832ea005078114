"""One module a library; importing one registers its models in the catalogue."""
