# What the generated shapes (tools/make_shapes.py) are, whatever the labels.
things = ('circle', 'square', 'triangle', 'star')
thing_palette = [(230, 57, 70), (69, 123, 230), (255, 190, 11), (42, 157, 80)]
stuff = ('stripes', 'dots', 'noise')
stuff_palette = [(200, 182, 226), (168, 218, 220), (224, 204, 170)]

# Loading is so cheap that worker processes only cost start-up time.
shapes_loader = dict(batch_size=8, num_workers=0, persistent_workers=False)
