/** What the server has told about the video: its branches, blocks and prompts. Knows no element. */

export class Session {
  constructor() {
    this.clear();
  }

  clear() {
    this.current = 0;
    this.branches = new Map();
    this.blocks = new Map();
    this.marks = [];
    this.prompts = new Map();
  }

  /** Take in a message; returns whether it belonged here. */
  take(message) {
    switch (message.type) {
      case "branches":
        this.current = message.current;
        this.branches = new Map(message.branches.map((branch) => [branch.id, { ...branch }]));
        this._forget();
        return true;
      case "block":
        this.blocks.set(key(message.branch, message.block), message);
        this._grow(message);
        return true;
      case "prompt_mark":
        this.prompts.set(message.id, message.prompt);
        this.marks = this.marks.filter(
          (mark) => mark.branch !== message.branch || mark.block !== message.block,
        );
        this.marks.push(message);
        return true;
      default:
        return false;
    }
  }

  /** The branch whose own block this is, seen from a branch that may have inherited it. */
  owner(branch, block) {
    let found = this.branches.get(branch);
    while (found && block < found.block) found = this.branches.get(found.parent);
    return found?.id ?? null;
  }

  /** Whether the block of a branch is part of the video that now plays. */
  isOnPath(branch, block) {
    return this.owner(this.current, block) === branch;
  }

  /** The prompt a block shows, or an empty text. */
  promptAt(branch, block) {
    const id = this.blocks.get(key(branch, block))?.prompt;
    return this.prompts.get(id) ?? "";
  }

  /** The marks of a branch in order, each with the block it ends before. */
  spans(branch) {
    const end = this.branches.get(branch)?.blocks ?? 0;
    const marks = this.marks.filter((mark) => mark.branch === branch);
    marks.sort((a, b) => a.block - b.block);
    return marks.map((mark, i) => ({ ...mark, end: Math.max(marks[i + 1]?.block ?? end, mark.block + 1) }));
  }

  _grow({ branch, block }) {
    const found = this.branches.get(branch);
    if (found) found.blocks = Math.max(found.blocks, block + 1);
  }

  _forget() {
    for (const [name, { branch }] of this.blocks) {
      if (!this.branches.has(branch)) this.blocks.delete(name);
    }
    this.marks = this.marks.filter(({ branch }) => this.branches.has(branch));
  }
}

export function key(branch, block) {
  return `${branch}:${block}`;
}
