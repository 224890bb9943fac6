"""Media and tables from elsewhere: URLs, downloads, the bounded folder they come to, and media inside another file."""
