"""Look at runs that other processes train: in the terminal, or as a page that follows them."""
