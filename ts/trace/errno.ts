const names =
  'EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE';
const numbers = new Map(names.split(' ').map((name, index) => [name, index + 1]));
numbers.set('ENOSYS', 38).set('EOVERFLOW', 75).set('EOPNOTSUPP', 95).set('ETIMEDOUT', 110);

/** Linux's number of an errno name; `undefined` for one that no slot call gives. */
export function errnoNumber(name: string): number | undefined {
  return numbers.get(name);
}

/** The name of an errno, or `errno N`. */
export function errnoName(number: number): string {
  for (const [name, value] of numbers) if (value === number) return name;
  return `errno ${number}`;
}
