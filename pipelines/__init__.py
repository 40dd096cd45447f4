"""The jobs and the command line on top of them."""
