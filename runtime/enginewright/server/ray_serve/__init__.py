"""The server as a Ray Serve application: replicas, autoscaling, routing by what prompts share."""
