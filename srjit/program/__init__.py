"""What both doors see of a program."""
