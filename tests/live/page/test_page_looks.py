"""Width, contrast, names of controls, and nothing from elsewhere."""

import pytest

pytest.importorskip("starlette", reason="the extra 'ui' is not installed")

from page_viewer import RED, send, wait_for_blocks


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_cut_off_at_small_widths(server, new_page, width):
    page = new_page(server.url, viewport={"width": width, "height": 780}, has_touch=True)
    page.wait_for_selector("#link[data-state=open]")
    send(page, RED)
    wait_for_blocks(page, 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#prompt").bounding_box()
    assert box["y"] + box["height"] < 780


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(server, new_page, scheme):
    page = new_page(server.url, color_scheme=scheme)
    page.wait_for_selector("#link[data-state=open]")
    pairs = [
        ("--ink", "--bg"),
        ("--muted", "--bg"),
        ("--muted", "--sunken"),
        ("--on-accent", "--accent"),
    ]
    for text, ground in pairs:
        ratio = page.evaluate(
            """([text, ground]) => {
              const luminance = (name) => {
                const probe = document.createElement('i');
                probe.style.color = `var(${name})`;
                document.body.append(probe);
                const rgb = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number);
                const [r, g, b] = rgb.map((v) => v / 255)
                  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const [a, b] = [luminance(text), luminance(ground)].sort((x, y) => y - x);
              return (a + 0.05) / (b + 0.05);
            }""",
            [text, ground],
        )
        assert ratio >= 4.5, (text, ground)


def test_every_control_has_a_name(playing):
    nameless = playing.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea')]
          .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_nothing_is_fetched_from_elsewhere(server, new_page, browser):
    page = new_page("about:blank")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#link[data-state=open]")
    assert len(asked) > 10
    assert all(url.startswith((server.url, "data:", "blob:")) for url in asked)
