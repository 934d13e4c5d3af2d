"""Users and events as query vectors, and the model of a live version that answers them."""
