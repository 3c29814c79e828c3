// Loads the page again once its server has a newer one, and keeps the reader's place: where it was
// scrolled to, which axis was chosen, and what was unfolded.
"use strict";
(() => {
  const PLACE = "place", EVERY = 3000, STILL = 1500; // milliseconds
  const version = document.querySelector("meta[name=version]").content;
  let moved = 0; // when the reader last did something

  function keep() {
    const along = document.querySelector("input[name=along]:checked")?.value;
    const open = [...document.querySelectorAll("details")].map((each) => each.open);
    sessionStorage.setItem(PLACE, JSON.stringify({ top: scrollY, along, open }));
  }

  function restore() {
    const place = JSON.parse(sessionStorage.getItem(PLACE) ?? "null");
    sessionStorage.removeItem(PLACE);
    history.scrollRestoration = "manual";
    if (!place) return;
    for (const input of document.querySelectorAll("input[name=along]")) {
      input.checked = input.value === place.along || input.checked;
    }
    document.querySelectorAll("details").forEach((each, index) => { each.open = Boolean(place.open[index]); });
    scrollTo({ top: place.top, behavior: "instant" });
  }

  async function look() {
    const is_reading = !getSelection().isCollapsed || performance.now() - moved < STILL;
    if (document.hidden || is_reading) return;
    const answer = await fetch("/", { method: "HEAD", cache: "no-store" });
    if (!answer.ok || answer.headers.get("ETag") === `"${version}"`) return;
    keep();
    location.reload();
  }

  for (const name of ["pointermove", "pointerdown", "wheel", "keydown", "scroll"]) {
    addEventListener(name, () => { moved = performance.now(); }, { passive: true });
  }
  restore();
  moved = -STILL;
  setInterval(() => look().catch(() => {}), EVERY); // a server that has ended leaves the page as it is
})();
