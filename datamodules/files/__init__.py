"""Files of all kinds: downloads, and what is made once and kept."""
