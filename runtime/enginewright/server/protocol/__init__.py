"""What requests may hold and what is answered: pydantic models, one file an endpoint."""
