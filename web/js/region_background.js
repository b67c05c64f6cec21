// An image behind the boxes, from a node of the graph or from a file.  It belongs to the page: no graph knows it.
import { allNodes, api, app, element, t } from "./page.js";

const FILE = "file";

/** The images of the graph's nodes, such as Load Image and Save Image, as {id, title, address}. */
function imagesInGraph() {
  const root = app.rootGraph ?? app.graph;
  return allNodes().flatMap(([node, id]) => {
    const own = node.graph === root ? String(node.id) : `${node.graph?.id}:${node.id}`;
    const image = app.nodeOutputs?.[own]?.images?.[0];
    if (!image?.filename) return [];
    const { filename, subfolder = "", type = "output" } = image;
    return [{ id, title: node.title, address: api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`) }];
  });
}

/** The address of the chosen image, "" for none; a node's image changes with each run. */
export function addressOf(background) {
  if (background?.address) return background.address;
  return imagesInGraph().find(({ id }) => id === background?.id)?.address ?? "";
}

/** A list to choose an image from; `chosen` receives {id} of a node, {address, name} of a file, or null. */
export function backgroundChoice(current, chosen) {
  const file = element("input", {
    type: "file", accept: "image/*", hidden: true,
    onchange: () => { if (file.files[0]) choose({ address: URL.createObjectURL(file.files[0]), name: file.files[0].name }); },
  });
  const select = element("select", {
    title: t("regions.background.tip"), "aria-label": t("regions.background"),
    onchange: () => {
      if (select.value === FILE) file.click();
      else choose(select.value ? { id: select.value } : null);
      select.value = valueOf(current);
    },
  });
  const choose = (background) => {
    if (current?.address) URL.revokeObjectURL(current.address);
    current = background;
    file.value = "";
    chosen(background);
    list();
  };
  const list = () => {
    const option = (value, text) => element("option", { value, selected: value === valueOf(current) }, text);
    select.replaceChildren(option("", t("regions.background.none")),
      ...imagesInGraph().map(({ id, title }) => option(id, `${title} (${id})`)),
      ...(current?.name ? [option(current.name, current.name)] : []), option(FILE, t("regions.background.file")));
  };
  for (const event of ["pointerdown", "focus"]) select.addEventListener(event, list);
  list();
  return [select, file];
}

const valueOf = (background) => background?.id ?? background?.name ?? "";
