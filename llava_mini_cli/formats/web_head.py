"""The beginning of a self-contained web page: no script runs in it, and it loads nothing."""

# Pictures and styles are inside the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def web_head(title: str, styles: str) -> str:
    """Everything up to the heading, which is the title; `title` is escaped already. Follows a light or dark browser."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }}
{styles.strip()}
</style>
</head>
<body>
<h1>{title}</h1>
"""
