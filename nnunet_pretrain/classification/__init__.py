"""Classification: a transferred encoder tells classes of images or lesions apart."""
