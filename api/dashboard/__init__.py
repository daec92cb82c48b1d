"""Web pages for people, over the same services as REST."""
