"""Pages for people in a browser, over the same services as REST."""
