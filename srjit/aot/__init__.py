"""Programs compiled for hardware that is not attached, and what their compilers made of them."""
