// Shows what a key may use. The key stays in its field, in the memory of this page only.

const element = (id) => document.getElementById(id);

async function show() {
  const key = element("key").value.trim(), message = element("message");
  message.className = message.textContent = "";
  try {
    const headers = { authorization: `Bearer ${key}` };
    const response = await fetch("my-key", { headers, credentials: "omit", cache: "no-store" });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (!page.querySelector("#shown section")) throw new Error("This gateway requires no key.");
    element("shown").replaceWith(page.getElementById("shown"));
    message.textContent = "This is what the key may use now.";
  } catch (error) {
    message.className = "error";
    message.textContent = error.message;
  }
}

element("show").addEventListener("click", show);
element("key").addEventListener("keydown", ({ key }) => key === "Enter" && show());
addEventListener("pagehide", () => { element("key").value = ""; });
element("ask").hidden = Boolean(document.querySelector("#shown section"));
