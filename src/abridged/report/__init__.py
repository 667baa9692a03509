"""The account of one compression as a page: plain data, the plots made of it, and the HTML that holds them."""
