"""Predict images with a trained model.

>>> from mmfocalnet.inference import load_predictor, read_image
>>> predictor = load_predictor(config, checkpoint)
>>> [prediction] = predictor.predict([read_image('photo.jpg')])
>>> prediction.boxes, prediction.labels, prediction.scores, prediction.overlay
"""

from mmfocalnet.inference.exported import ExportedPredictor
from mmfocalnet.inference.images import MAX_PIXELS, ImageError, read_image
from mmfocalnet.inference.prediction import Prediction, Segment, draw
from mmfocalnet.inference.predictor import Predictor, load_predictor

__all__ = [
    'MAX_PIXELS',
    'ExportedPredictor',
    'ImageError',
    'Prediction',
    'Predictor',
    'Segment',
    'draw',
    'load_predictor',
    'read_image',
]
