"""The search index: terms, postings, and the queries on them."""
