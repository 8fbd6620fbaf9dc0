/**
 * Host memory that backs RAM, ROM, and the ROM mode of ROM devices: an identity, and a size in bytes. The memory map
 * never looks inside; the layer that allocated it knows where it is on the host.
 */
export interface GuestMemory {
  /** Size in bytes. */
  readonly size: number;
}
