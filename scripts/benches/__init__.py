"""What `leeml bench` measures, one file a homework."""
