"""An answer as a report: words, tables and pictures; as JSON, Markdown or one HTML page."""
