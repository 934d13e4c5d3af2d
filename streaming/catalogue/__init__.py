"""Items and users: what their topics or files say."""
