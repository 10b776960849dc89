"""Ideas of the notes as small experiments: one file a study with a `STUDY`, found by `leeml study` (no list)."""
