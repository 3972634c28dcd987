from agreement import configs, data, made

__all__ = ['configs', 'data', 'made']
