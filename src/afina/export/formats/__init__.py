"""One file a format that others load: what it can hold, how it is written, how it is compared in what loads it."""
