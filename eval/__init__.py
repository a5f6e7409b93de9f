"""What a model is worth.

Tasks, metrics, tensor errors, latency. Write `from eval.tasks import get_task`, never `import eval`.
"""
