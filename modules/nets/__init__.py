"""Networks in plain torch.nn, one file an idea; they know neither Lightning nor the homeworks."""
