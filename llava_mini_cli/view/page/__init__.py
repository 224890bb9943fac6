"""The page: view.html, its one style sheet and its one script, and how they become a document."""
