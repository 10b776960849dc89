"""Parts of translators: search, losses, sampling, scores."""
