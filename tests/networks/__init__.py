"""Networks to try the engine on, and what must hold for every one of them."""
