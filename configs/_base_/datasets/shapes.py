# Classes, colours and loader settings of the generated shapes (tools/make_shapes.py).
things = ('circle', 'square', 'triangle', 'star')
thing_palette = [(230, 57, 70), (69, 123, 230), (255, 190, 11), (42, 157, 80)]
stuff = ('stripes', 'dots', 'noise')
stuff_palette = [(200, 182, 226), (168, 218, 220), (224, 204, 170)]

# No worker processes: loading is so fast that their start-up would cost more.
shapes_loader = dict(batch_size=8, num_workers=0, persistent_workers=False)
