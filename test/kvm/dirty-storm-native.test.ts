import { dirtyStormTests } from './dirty-reshaper.js';
import { native } from './dirty-subjects.js';

dirtyStormTests(native);
