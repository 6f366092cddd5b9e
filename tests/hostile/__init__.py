"""Files made to do harm, and a judge that opens them with the real loaders under limits."""
