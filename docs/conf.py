"""Settings of Sphinx, which builds the documentation site (`make docs`)."""

from mmfocalnet import __version__

project = 'mmfocalnet'
author = 'The mmfocalnet authors'
release = version = __version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # the notebook has its outputs
# Docstrings name classes and functions in single backticks. Those on the site become links.
napoleon_use_ivar = True
default_role = 'py:obj'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_member_order = 'bysource'
add_module_names = False
python_use_unqualified_type_names = True

html_theme = 'furo'
html_show_copyright = False
html_title = f'mmfocalnet {release}'
