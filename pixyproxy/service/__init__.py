"""The operations of PixyProxy, independent of transport: images, generations, usage and users."""
