"""Where everything is kept: the databases behind repositories, and the store of image bytes."""
