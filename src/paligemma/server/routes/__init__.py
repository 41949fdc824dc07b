"""One file per group of routes: the task routes, the OpenAI dialect, batches, and server state."""
