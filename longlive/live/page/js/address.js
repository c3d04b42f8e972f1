/** Addresses of the server this page came from, with the token of the page's own address. */

const here = new URL(location.href);
const token = here.searchParams.get("token");

/** Turn an address relative to the server into a whole one. */
export function serverAddress(path) {
  const address = new URL(path, here);
  address.search = "";
  if (token) address.searchParams.set("token", token);
  return address.href;
}

export function socketAddress() {
  return serverAddress("live").replace(/^http/, "ws");
}

/** A choice made in the page's address: `?transport=jpeg`. */
export function asked(name) {
  return here.searchParams.get(name);
}
