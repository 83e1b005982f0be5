"""Files for a user's folder: copies of what is shipped, and a site for this cluster."""
