"""The float models: loading, what they are fed, their digest."""
