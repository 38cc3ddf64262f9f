// Follows what happens: asks each second for a few bytes that change when the page does, and then fetches it anew.
"use strict";
(() => {
  const EVERY_MS = 1000, AFTER_FAILURE_MS = 5000;
  const status = document.getElementById("live");
  const page = location.href.split("#")[0];
  const main = () => document.getElementById("content");

  const look = async () => {
    if (document.hidden) return EVERY_MS;
    const asked = await fetch(main().dataset.live);
    if (!asked.ok) throw new Error(asked.status);
    const { token } = await asked.json();
    if (token === main().dataset.token) return EVERY_MS;
    const answer = await fetch(page);
    if (!answer.ok) throw new Error(answer.status);
    replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
    if (main().dataset.token !== undefined) return EVERY_MS;
    status.textContent = "It has ended; this page no longer changes.";
    return null;
  };

  const replace = (fresh) => {
    const old = main(), next = document.adoptNode(fresh.getElementById("content"));
    for (const details of old.querySelectorAll("details[id]")) {
      const same = next.querySelector(`#${CSS.escape(details.id)}`);
      if (same) same.open = details.open;
    }
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const key = focused && (focused.id ? `#${CSS.escape(focused.id)}` : focused.getAttribute("href") ? `[href="${CSS.escape(focused.getAttribute("href"))}"]` : null);
    const scrolled = [...old.querySelectorAll(".scroll[id]")].map((each) => [each.id, each.scrollLeft, each.scrollTop, each.scrollTop + each.clientHeight >= each.scrollHeight - 2]);
    old.replaceWith(next);
    document.title = fresh.title;
    for (const [id, left, top, wasAtEnd] of scrolled) {
      const same = document.getElementById(id);
      if (same) { same.scrollLeft = left; same.scrollTop = wasAtEnd && same.dataset.follow !== undefined ? same.scrollHeight : top; }
    }
    if (key) main().querySelector(key)?.focus({ preventScroll: true });
  };

  const follow = async () => {
    let wait = AFTER_FAILURE_MS;
    try {
      wait = await look();
      if (wait !== null && status.dataset.lost) { delete status.dataset.lost; status.textContent = "This page follows what happens."; }
    } catch {
      status.dataset.lost = "yes";
      status.textContent = "The server does not answer; asking again every few seconds.";
    }
    if (wait !== null) setTimeout(follow, wait);
  };
  setTimeout(follow, EVERY_MS);
})();
