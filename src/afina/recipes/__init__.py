"""The recipes that come with afina."""
