"""What PixyProxy does, free of transport: the use cases of images and of users."""
