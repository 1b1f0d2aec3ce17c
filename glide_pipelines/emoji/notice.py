"""Licence and attribution of the set."""

from __future__ import annotations


_MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

NOTICE = f"""# The Fluent emoji set

**Pictures**: Fluent Emoji, the 3D renderings, by Microsoft; taken from the npm package `@lobehub/fluent-emoji-3d` 1.1.0
by LobeHub. They were put on plain backgrounds, scaled and moved. Country flags, families, and designs that Microsoft
keeps as trademarks (the paperclip, the video game, the technologists) were left out.

**Names and categories**: `emoji-datasource` 16.0.0 by Cal Henderson. The captions were made from them.

Both packages and the designs are under the MIT licence:

Copyright (c) Microsoft Corporation
Copyright (c) 2023 LobeHub
Copyright (c) 2013 Cal Henderson

{_MIT}"""
