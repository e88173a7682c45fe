// Keeps the first page fresh: every few seconds, while it is looked at, its <main> is fetched again. Without it the page is complete.
const PAUSE = 10000;

async function refresh() {
  if (document.hidden || document.querySelector("main :focus")) return;
  try {
    const reply = await fetch(location.pathname + location.search, { headers: { accept: "text/html" } });
    if (!reply.ok) return;
    const next = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main");
    const here = document.querySelector("main");
    if (next && next.innerHTML !== here.innerHTML) here.replaceWith(next);
  } catch {
    // The server is away: what was last known stays, and the next try may find it.
  }
}

setInterval(refresh, PAUSE);
