// Refreshes the page in place. Without it the page is complete, and as of when it was asked for.
(() => {
  const button = document.getElementById("live");
  const reading = () =>
    document.hidden || !getSelection().isCollapsed ||
    document.getElementById("main").contains(document.activeElement);
  const refresh = async () => {
    if (reading()) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (!answer.ok) return;
      const fresh = new DOMParser()
        .parseFromString(await answer.text(), "text/html").getElementById("main");
      if (!fresh || reading() || button.ariaPressed !== "true") return;
      const old = document.getElementById("main");
      for (const open of old.querySelectorAll("details[open]")) {
        fresh.querySelector(`#${open.id}`)?.setAttribute("open", "");
      }
      const seen = [...old.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
      old.replaceWith(document.adoptNode(fresh));
      fresh.querySelectorAll(".scroll").forEach((each, at) => { each.scrollLeft = seen[at] ?? 0; });
      document.dispatchEvent(new Event("refreshed"));
    } catch { /* the server is away: what is shown stays, with its time */ }
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
  });
  setInterval(() => { if (button.ariaPressed === "true") refresh(); }, 5000);
})();
