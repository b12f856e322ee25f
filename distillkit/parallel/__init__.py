"""How networks are spread over the processes of a job and their devices."""
