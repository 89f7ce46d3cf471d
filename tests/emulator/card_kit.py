"""Arrays and tables on a card whose streams run in an order of their own."""

import numpy as np

import embstore as es

DIM = 8
STREAMS = [0, *range(100, 110)]  # 1 and 2 are other names of the default stream


def put(card, values, stream=0):
    """Return an array of the card, made on a stream."""
    values = np.asarray(values)
    queue = card.queue(stream)
    array = card.new_array(values.shape, values.dtype, queue)
    if values.nbytes:
        queue.upload(array.memory.address, np.ascontiguousarray(values))
    return array


def get(card, array):
    """Return an array of the card as numpy's, after all work."""
    card.finish()
    return array.numpy().copy()


def table_on(device, **more):
    given = {"optimizer": es.Adam(lr=0.1), "initializer": es.Normal(std=0.5), "hash_seed": 1}
    return es.Table(DIM, device=device, **{**given, **more})
