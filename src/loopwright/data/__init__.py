"""Stage 2: tables and their contracts, ingestion with quarantine, examples as of a moment, context for serving."""
